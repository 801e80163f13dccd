//! How long it takes from starting a proxy to its first answer to a call.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::load;
use crate::peers::{ALL, Behind, Places, Proxy, server};
use crate::report::at;

/// How often a proxy that is starting is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

#[derive(Serialize)]
pub(crate) struct Start(Vec<Figures>);

/// Microseconds.
#[derive(Serialize)]
struct Figures {
    proxy: &'static str,
    starts: usize,
    median: f64,
    longest: f64,
}

pub(crate) async fn measure(places: &Places<'_>, turns: usize) -> anyhow::Result<Start> {
    let (_server, url) = server(false)?;
    let behind = Behind::Http(url);
    load::until_ready(
        &Proxy::Direct.start(&behind, places).await?.endpoint,
        LOOK_AGAIN,
    )
    .await?;
    let proxies = ALL
        .into_iter()
        .filter(|proxy| *proxy != Proxy::Direct && proxy.suits(&behind));
    let mut all = Vec::new();
    for proxy in proxies {
        let mut times = Vec::new();
        // One more: the first one fills caches.
        for _ in 0..=turns.max(5) {
            let began = Instant::now();
            let running = proxy.start(&behind, places).await?;
            load::until_ready(&running.endpoint, LOOK_AGAIN).await?;
            times.push(u64::try_from(began.elapsed().as_nanos())?);
        }
        times.remove(0);
        times.sort_unstable();
        all.push(Figures {
            proxy: proxy.name(),
            starts: times.len(),
            median: at(&times, 0.5),
            longest: at(&times, 1.0),
        });
    }
    Ok(Start(all))
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nfrom its start to the first answer")?;
        writeln!(f, "{:27} {:>10} {:>10}", "", "median ms", "longest ms")?;
        for one in &self.0 {
            writeln!(
                f,
                "{:27} {:>10.1} {:>10.1}",
                one.proxy,
                one.median / 1e3,
                one.longest / 1e3
            )?;
        }
        Ok(())
    }
}
