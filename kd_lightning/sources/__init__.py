"""What training may see: real images, a few of them, none at all, noise, or answers that were paid for."""
