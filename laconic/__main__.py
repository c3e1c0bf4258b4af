"""`python -m laconic`, and the script `laconic`."""

from laconic.interrupted import ending_quietly

with ending_quietly():
    from laconic.cli.main import main

if __name__ == "__main__":
    main()
