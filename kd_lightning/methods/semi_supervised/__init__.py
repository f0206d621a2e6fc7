"""Few labels and many images without: semi-supervised generative adversarial networks."""
