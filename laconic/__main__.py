"""`python -m laconic`, and the script `laconic`."""

from laconic.cli import exit_on_interrupt

with exit_on_interrupt():
    from laconic.cli.main import main

if __name__ == "__main__":
    main()
