"""An upload for the server that scores MVTec AD 2's private test sets: written from runs, and checked."""
