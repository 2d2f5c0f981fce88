from .sources import list_entries as list_entries
from .sources import read_entries as read_entries
