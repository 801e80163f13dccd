//! The contract's interface `targets`, written by hand where the other bindings are generated.
//!
//! A list of targets is the most a strategy usually asks for. The generated types own their strings, so that
//! each name would be copied twice: into one of those, and from there into the strategy. These lend them.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, HasData, Linker, Lower, flags};

// How a target stands.
flags! {
    Standing {
        #[component(name = "healthy")]
        const HEALTHY;
        #[component(name = "admitted")]
        const ADMITTED;
        #[component(name = "tried")]
        const TRIED;
        #[component(name = "present")]
        const PRESENT;
    }
}

/// One target.
#[derive(ComponentType, Lower)]
#[component(record)]
pub struct Target {
    pub name: Arc<str>,
    pub kind: &'static str,
    pub priority: i32,
    pub weight: u32,
    pub standing: Standing,
}

/// What the interface asks of the host.
pub trait Host {
    fn snapshot(&mut self) -> Vec<Target>;
    fn best(&mut self, kind: Option<String>) -> Option<Arc<str>>;
    fn attribute(&mut self, target: String, key: String) -> Option<String>;
}

impl<H: Host + ?Sized> Host for &mut H {
    fn snapshot(&mut self) -> Vec<Target> {
        H::snapshot(self)
    }

    fn best(&mut self, kind: Option<String>) -> Option<Arc<str>> {
        H::best(self, kind)
    }

    fn attribute(&mut self, target: String, key: String) -> Option<String> {
        H::attribute(self, target, key)
    }
}

/// What the generated code asks of an interface none of whose functions needs the store: nothing.
pub trait HostWithStore<T>: HasData {}

impl<T, D: HasData + ?Sized> HostWithStore<T> for D {}

/// As the generated functions of this name do.
pub fn add_to_linker<T, D>(
    linker: &mut Linker<T>,
    host: fn(&mut T) -> D::Data<'_>,
) -> wasmtime::Result<()>
where
    T: 'static,
    D: HasData,
    for<'a> D::Data<'a>: Host,
{
    let mut instance = linker.instance("backstop:strategy/targets@0.1.0")?;
    instance.func_wrap(
        "snapshot",
        move |mut store: StoreContextMut<'_, T>, (): ()| Ok((host(store.data_mut()).snapshot(),)),
    )?;
    instance.func_wrap("best", move |mut store: StoreContextMut<'_, T>, (kind,)| {
        Ok((host(store.data_mut()).best(kind),))
    })?;
    instance.func_wrap(
        "attribute",
        move |mut store: StoreContextMut<'_, T>, (target, key)| {
            Ok((host(store.data_mut()).attribute(target, key),))
        },
    )
}
