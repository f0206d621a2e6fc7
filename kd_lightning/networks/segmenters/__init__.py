"""Networks for segmentation: images (N, C, H, W) to logits of every pixel (N, num_classes, H, W)."""
