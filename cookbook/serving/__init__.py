"""What comes after training: a finished run exported, checked and served."""
