"""Images: where they come from, how they are batched and augmented, and what training may see of them."""
