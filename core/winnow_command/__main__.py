"""`python -m winnow_command` is `winnow`."""

from winnow_command import main

main()
