from .codec import halve_into as halve_into
from .codec import pack as pack
from .codec import unpack_halved_into as unpack_halved_into
from .codec import unpack_into as unpack_into
from .record import RecordHeader as RecordHeader
from .record import check_record as check_record
from .record import read_header as read_header
