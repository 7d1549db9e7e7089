"""Published results and recipes, and the built-in experiments that follow them."""
