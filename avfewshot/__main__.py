"""`python -m avfewshot` is the program `avfs`."""

from avfewshot.cli import main

main()
