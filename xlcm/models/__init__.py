"""What is kept, saved and searched with: encoders with heads."""
