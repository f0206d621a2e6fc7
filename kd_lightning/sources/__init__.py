"""Sources of training images: real, few, none, noise, generated, or with stored answers of the teacher."""
