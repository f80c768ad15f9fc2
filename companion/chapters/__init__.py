"""The experiments of the book, one folder a chapter; `companion.lab.chapters` finds them."""
