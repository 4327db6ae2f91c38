"""What a picture loses with each product of a model in fewer bits."""
