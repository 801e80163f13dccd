//! The floor: a call of a component that does nothing, entered as directly as wasmtime allows.

use wasmtime::component::{Component, Linker, TypedFunc};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

const EMPTY: &str = r#"
(component
    (core module $m (func (export "empty")))
    (core instance $i (instantiate $m))
    (func (export "empty") (canon lift (core func $i "empty"))))
"#;

pub struct Floor {
    store: Store<()>,
    empty: TypedFunc<(), ()>,
}

impl Floor {
    pub fn new() -> Self {
        let mut config = Config::new();
        config.epoch_interruption(true);
        let pool = PoolingAllocationConfig::new();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config).expect("an engine");
        let binary = wat::parse_str(EMPTY).expect("WebAssembly");
        let component = Component::new(&engine, binary).expect("a component");
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1);
        let instance = Linker::new(&engine)
            .instantiate(&mut store, &component)
            .expect("an instance");
        let empty = instance
            .get_typed_func(&mut store, "empty")
            .expect("a function");
        Self { store, empty }
    }

    pub fn call(&mut self) {
        self.empty.call(&mut self.store, ()).expect("a call");
    }
}
