"""What the weights of a model look like and what it does with a text: measured, drawn, and said in words."""
