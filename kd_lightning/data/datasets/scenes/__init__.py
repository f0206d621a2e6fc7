"""Scenes with a class for every pixel: public sets in their own layouts, and folders of images and label maps."""
