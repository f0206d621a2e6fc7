"""Methods for a teacher that only answers, asked while they train."""
