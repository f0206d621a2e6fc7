"""Small pieces that every other wing may use: tasks, image buffers, feature hooks, inference."""
