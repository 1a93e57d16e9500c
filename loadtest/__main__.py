"""`python -m loadtest`: open-loop load on a gRPC model server."""

from loadtest.load.cli import main

if __name__ == "__main__":
    main(prog_name="python -m loadtest")
