"""What every recipe needs and no reader came to learn. See ARCHITECTURE.md."""
