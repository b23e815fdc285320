"""The command `multilora-gateway`, and `python -m multilora_gateway`.

`pip install .` installs this command also for users of the client alone, without the packages that
the gateway runs on.
"""

import sys


def main() -> int:
    try:
        from multilora_gateway import cli
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("multilora"):
            raise
        print(
            f"error: the gateway needs {error.name}; where multilora-triton comes from, run "
            "pip install '.[gateway]'",
            file=sys.stderr,
        )
        return 1
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
