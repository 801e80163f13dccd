//! Stock strategy of backstop: ask another service.
