"""What Make's commands run. No notebook imports anything from here."""
