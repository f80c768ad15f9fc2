"""The experiments of the book, one folder per chapter; `companion.lab.chapters` finds them."""
