//! Stock strategy of backstop: ask another model.
