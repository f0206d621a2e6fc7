"""Small pieces that every wing above may use: tasks, image buffers, feature hooks, inference."""
