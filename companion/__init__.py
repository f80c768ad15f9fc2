"""How the book is run, judged and rendered: chapters, evidence, pages. Never published."""
