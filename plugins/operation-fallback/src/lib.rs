//! Stock strategy of backstop: call another operation.
