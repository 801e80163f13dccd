//! Stock strategy of backstop: answer with data.
