"""How large a deployment must be: python -m loadtest.sizing --help."""

if __name__ == "__main__":  # the generator's processes import this file anew, and need none of what it needs
    from loadtest.sizing.cli import main

    main(prog_name="python -m loadtest.sizing")
