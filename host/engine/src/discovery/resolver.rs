//! A stub resolver: it asks name servers that ask others (RFC 1035, RFC 2782), over UDP, and over TCP
//! where an answer is too long for it.
//!
//! The system's own resolver knows neither SRV records nor times to live. A resolver crate would do
//! more than is needed here (caches, DNSSEC, several transports); messages are read and written by
//! `simple-dns`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::config::Record;
use crate::random::Random;

/// How long a name server may take, as in resolv.conf(5) with patience halved.
const TIMEOUT: Duration = Duration::from_millis(2500);
/// How often each is asked (resolv.conf(5): `attempts`).
const ROUNDS: u32 = 2;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("{name:?} is no name: {reason}")]
    Name { name: String, reason: String },
    #[error("no name server is known: {RESOLV_CONF} names none; set nameservers")]
    NoServer,
    #[error("{name} has no such records")]
    Nothing { name: String },
    #[error("no name server knows {name}: {last}")]
    Failed { name: String, last: String },
}

/// A server, as an SRV record says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// Empty for `.`.
    pub(super) name: String,
    pub(super) port: u16,
    /// Lower is preferred.
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) ttl: Duration,
}

/// An address, and how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) ip: IpAddr,
    pub(super) ttl: Duration,
}

pub(super) struct Resolver {
    /// Empty for the system's.
    servers: Vec<SocketAddr>,
    random: Random,
}

impl Resolver {
    pub(super) fn new(servers: Vec<SocketAddr>, random: Random) -> Self {
        Self { servers, random }
    }

    /// The servers an SRV name leads to.
    pub(super) async fn hosts(&self, name: &str) -> Result<Vec<Host>, ResolveError> {
        let read = |rdata: &RData<'_>, ttl: u32| match rdata {
            RData::SRV(srv) => Some(Host {
                name: srv.target.to_string(),
                port: srv.port,
                priority: srv.priority,
                weight: srv.weight,
                ttl: Duration::from_secs(u64::from(ttl)),
            }),
            _ => None,
        };
        something(name, self.records(name, TYPE::SRV, read).await?)
    }

    /// The addresses of a host.
    pub(super) async fn addresses(
        &self,
        name: &str,
        record: Record,
    ) -> Result<Vec<Address>, ResolveError> {
        let v4 = |rdata: &RData<'_>, ttl: u32| match rdata {
            RData::A(a) => Some(Address::new(Ipv4Addr::from(a.address), ttl)),
            _ => None,
        };
        let v6 = |rdata: &RData<'_>, ttl: u32| match rdata {
            RData::AAAA(aaaa) => Some(Address::new(Ipv6Addr::from(aaaa.address), ttl)),
            _ => None,
        };
        let mut found = Vec::new();
        if record != Record::Aaaa {
            found.extend(self.records(name, TYPE::A, v4).await?);
        }
        if record != Record::A {
            found.extend(self.records(name, TYPE::AAAA, v6).await?);
        }
        something(name, found)
    }

    /// Asks one name server after another until one answers.
    async fn records<T>(
        &self,
        name: &str,
        kind: TYPE,
        read: impl Fn(&RData<'_>, u32) -> Option<T>,
    ) -> Result<Vec<T>, ResolveError> {
        let servers = if self.servers.is_empty() {
            // Read each time: it changes with the network.
            let text = tokio::task::spawn_blocking(|| std::fs::read_to_string(RESOLV_CONF)).await;
            nameservers(&text.ok().and_then(Result::ok).unwrap_or_default())
        } else {
            self.servers.clone()
        };
        if servers.is_empty() {
            return Err(ResolveError::NoServer);
        }
        let mut last = String::new();
        for server in servers.iter().cycle().take(servers.len() * ROUNDS as usize) {
            let id = (self.random)() as u16;
            let question = question(id, name, kind).map_err(|error| ResolveError::Name {
                name: name.to_owned(),
                reason: error.to_string(),
            })?;
            let answer = match timeout(TIMEOUT, exchange(*server, &question)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    last = format!("{server}: {error}");
                    continue;
                }
                Err(_) => {
                    last = format!("{server}: no answer within {TIMEOUT:?}");
                    continue;
                }
            };
            let packet = match Packet::parse(&answer) {
                Ok(packet) => packet,
                Err(error) => {
                    last = format!("{server}: {error}");
                    continue;
                }
            };
            match packet.rcode() {
                RCODE::NoError => {
                    let records = packet.answers.iter();
                    return Ok(records
                        .filter_map(|record| read(&record.rdata, record.ttl))
                        .collect());
                }
                RCODE::NameError => return Ok(Vec::new()),
                other => last = format!("{server}: {other:?}"),
            }
        }
        Err(ResolveError::Failed {
            name: name.to_owned(),
            last,
        })
    }
}

/// A name without records is no answer that may change anything.
fn something<T>(name: &str, found: Vec<T>) -> Result<Vec<T>, ResolveError> {
    if found.is_empty() {
        return Err(ResolveError::Nothing {
            name: name.to_owned(),
        });
    }
    Ok(found)
}

fn question(id: u16, name: &str, kind: TYPE) -> Result<Vec<u8>, simple_dns::SimpleDnsError> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let (kind, class) = (QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN));
    let question = Question::new(Name::new(name)?, kind, class, false);
    packet.questions.push(question);
    packet.build_bytes_vec()
}

/// Sends a question and waits for its answer.
async fn exchange(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A port of its own for each question, and a server that is connected: answers of others are dropped.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if !answers(question, answer) {
            continue;
        }
        let truncated =
            Packet::parse(answer).map_or(true, |packet| packet.has_flags(PacketFlag::TRUNCATION));
        return if truncated {
            over_tcp(server, question).await
        } else {
            Ok(answer.to_vec())
        };
    }
}

/// Whether it is an answer to the question: its id, and the bit that says so.
fn answers(question: &[u8], answer: &[u8]) -> bool {
    answer.len() >= 12
        && answer.get(..2) == question.get(..2)
        && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let invalid = |text: &'static str| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(|_| invalid("the question is too long"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(question).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answers(question, &answer) {
        return Ok(answer);
    }
    Err(invalid("this is no answer to the question"))
}

/// The name servers of a resolv.conf(5).
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(str::split_whitespace);
    words
        .filter_map(|mut words| {
            let address = (words.next() == Some("nameserver")).then(|| words.next())??;
            // A zone such as `%eth0` cannot be asked for here.
            Some(SocketAddr::new(address.parse().ok()?, 53))
        })
        .collect()
}
