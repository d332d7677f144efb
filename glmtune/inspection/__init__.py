"""What is in files of records, what is wrong with them, and what a model would learn of them."""
