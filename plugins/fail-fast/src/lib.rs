//! Stock strategy of backstop: end the call with a clean error.
