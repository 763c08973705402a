"""One function per layout on disk: `(source, class_name, split) -> list[Sample]`; dataset.py has the table."""
