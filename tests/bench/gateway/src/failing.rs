//! What a call costs while the preferred server is dead and its circuit open.

use std::fmt;

use serde::Serialize;

use crate::load::{self, Load, Plan};
use crate::peers::{Places, backstop, nowhere, server};
use crate::report::{LOOK_AGAIN, at};

const CLIENTS: [usize; 2] = [1, 64];

/// Microseconds of a call through the gateway, with two servers of which the first is asked where it can
/// be.
#[derive(Serialize)]
pub(crate) struct Failing(Vec<Figures>);

#[derive(Serialize)]
struct Figures {
    clients: usize,
    healthy_median: f64,
    /// The first is dead.
    failing_median: f64,
    ratio: f64,
}

pub(crate) async fn measure(places: &Places<'_>, plan: Plan) -> anyhow::Result<Failing> {
    let ((_first, first), (_second, second)) = (server(false)?, server(false)?);
    let config = |first: &str| {
        format!(
            "[[service]]\nname = \"first\"\ngroup = \"bench\"\npriority = 10\ntrusted = true\nurl = {first:?}\n\
             [[service]]\nname = \"second\"\ngroup = \"bench\"\ntrusted = true\nurl = {second:?}\n"
        )
    };
    let healthy = backstop(&config(&first), places)?;
    let failing = backstop(&config(&nowhere()?), places)?;
    let mut all = Vec::new();
    for clients in CLIENTS {
        let mut loads = Vec::new();
        for gateway in [&healthy, &failing] {
            load::until_ready(&gateway.endpoint, LOOK_AGAIN).await?;
            let load = Load::open(&gateway.endpoint, clients, 100).await?;
            loads.push((load, Vec::new()));
        }
        for _ in 0..plan.turns {
            for (load, times) in &mut loads {
                times.extend(load.turn(plan.turn).await?.times);
            }
        }
        let mut medians = loads.into_iter().map(|(_, mut times)| {
            times.sort_unstable();
            at(&times, 0.5)
        });
        let healthy_median = medians.next().unwrap_or(f64::NAN);
        let failing_median = medians.next().unwrap_or(f64::NAN);
        all.push(Figures {
            clients,
            healthy_median,
            failing_median,
            ratio: failing_median / healthy_median,
        });
    }
    Ok(Failing(all))
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nthe first of two servers dead, its circuit open")?;
        writeln!(
            f,
            "{:27} {:>10} {:>10} {:>7}",
            "", "healthy µs", "failing µs", "ratio"
        )?;
        for one in &self.0 {
            writeln!(
                f,
                "{:27} {:>10.0} {:>10.0} {:>7.2}",
                format!("{} client(s)", one.clients),
                one.healthy_median,
                one.failing_median,
                one.ratio
            )?;
        }
        Ok(())
    }
}
