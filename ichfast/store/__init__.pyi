from .header import StoreHeader as StoreHeader
from .store import Store as Store
from .verify import verify_store as verify_store
