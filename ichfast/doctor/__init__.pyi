from .checks import find_problems as find_problems
from .checks import next_command as next_command
from .machine import Machine as Machine
from .machine import examine_machine as examine_machine
from .screen import format_machine as format_machine
