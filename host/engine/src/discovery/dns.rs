//! Services behind a name in DNS.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::sleep;

use super::resolver::{Address, Host, ResolveError, Resolver};
use super::{Page, Targets};
use crate::config::{
    Dns, Expanded, Record, Scheme, Service, TargetLimits, TargetPolicies, Transport,
};
use crate::random::{Random, below};

/// The shortest time an answer is used, whatever its time to live.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How much longer an answer is used, by chance, in percent: not all hosts of a fleet ask at once.
const JITTER_PERCENT: u32 = 10;

/// Asks again and again.
pub(super) async fn follow(name: String, dns: Dns, mut page: Page, random: Random) {
    let resolver = Resolver::new(dns.nameservers.clone(), random.clone());
    loop {
        let pause = match find(&name, &dns, &resolver).await {
            Ok((services, ttl)) => {
                page.write(Targets {
                    services,
                    models: Vec::new(),
                });
                ttl.clamp(SHORTEST, dns.interval.max(SHORTEST))
            }
            Err(error) => {
                page.refuse(&error.to_string());
                dns.interval.min(AFTER_FAILURE)
            }
        };
        let most = pause * JITTER_PERCENT / 100;
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        sleep(pause + Duration::from_nanos(below(random(), most))).await;
    }
}

/// The services there are now, and how long that holds.
async fn find(
    name: &str,
    dns: &Dns,
    resolver: &Resolver,
) -> Result<(Vec<Service>, Duration), ResolveError> {
    let mut ttl = dns.interval;
    let mut services = Vec::new();
    if dns.record == Record::Srv {
        let hosts = resolver.hosts(&dns.dns).await?;
        // `.` says that there is no such service here.
        let hosts: Vec<Host> = hosts
            .into_iter()
            .filter(|host| !host.name.is_empty())
            .collect();
        let most_preferred = hosts.iter().map(|host| host.priority).min().unwrap_or(0);
        for host in hosts {
            ttl = ttl.min(host.ttl);
            let authority = format!("{}:{}", host.name, host.port);
            // Name servers of the operator's own may know hosts the system's do not.
            let reached = if dns.nameservers.is_empty() || dns.scheme == Scheme::Https {
                authority.clone()
            } else {
                let addresses = resolver.addresses(&host.name, Record::Address).await?;
                ttl = ttl.min(shortest(&addresses));
                match addresses.first() {
                    Some(address) => SocketAddr::new(address.ip, host.port).to_string(),
                    None => continue,
                }
            };
            let below = i32::from(host.priority - most_preferred);
            let priority = dns.priority.saturating_sub(below);
            services.push(service(
                name,
                dns,
                &authority,
                &reached,
                priority,
                host.weight,
            ));
        }
    } else {
        let addresses = resolver.addresses(&dns.dns, dns.record).await?;
        ttl = ttl.min(shortest(&addresses));
        for address in addresses {
            let authority = SocketAddr::new(address.ip, dns.port.unwrap_or(80)).to_string();
            services.push(service(name, dns, &authority, &authority, dns.priority, 1));
        }
    }
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services.dedup_by(|a, b| a.name == b.name);
    Ok((services, ttl))
}

fn shortest(addresses: &[Address]) -> Duration {
    let ttls = addresses.iter().map(|address| address.ttl);
    ttls.min().unwrap_or(Duration::MAX)
}

fn service(
    name: &str,
    dns: &Dns,
    authority: &str,
    reached: &str,
    priority: i32,
    weight: u16,
) -> Service {
    let url = format!("{}://{reached}{}", dns.scheme.as_str(), dns.path);
    Service {
        name: format!("{name}@{authority}"),
        group: dns.group.clone(),
        transport: Transport::Http {
            url: Expanded::literal(url),
            headers: dns.headers.clone(),
            oauth: None,
        },
        health_url: None,
        priority,
        // RFC 2782: a weight of 0 is a small one.
        weight: u32::from(weight.max(1)),
        trusted: dns.trusted,
        ambiguous_statuses: Vec::new(),
        limits: TargetLimits::default(),
        policies: TargetPolicies::default(),
    }
}

impl Address {
    pub(super) fn new(ip: impl Into<IpAddr>, ttl: u32) -> Self {
        Self {
            ip: ip.into(),
            ttl: Duration::from_secs(ttl.into()),
        }
    }
}
