from .documents import write_documents as write_documents
