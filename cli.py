"""`python cli.py ...` runs the same program as the installed command `avfs ...`."""

from avfewshot.cli import main

if __name__ == "__main__":
    main()
