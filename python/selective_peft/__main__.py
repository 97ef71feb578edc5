"""`python -m selective_peft`: the command `selective-peft`."""

from selective_peft.cli import main

raise SystemExit(main())
