"""What a command would make, and what that would cost."""
