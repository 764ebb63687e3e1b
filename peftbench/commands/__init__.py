"""What each command does. Only this folder prints."""
