//! The proxies, each as its own documentation starts it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use serde_json::json;
use tokio::process::{Child, Command};

use crate::load::Endpoint;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// None: the client asks the server itself.
    Direct,
    Backstop,
    /// crates.io `mcp-proxy`.
    RustMcpProxy,
    /// PyPI `fastmcp`.
    FastMcp,
    /// PyPI `mcp-proxy`.
    PythonMcpProxy,
    /// npm `supergateway`.
    Supergateway,
}

pub(crate) const ALL: [Proxy; 6] = [
    Proxy::Direct,
    Proxy::Backstop,
    Proxy::RustMcpProxy,
    Proxy::FastMcp,
    Proxy::PythonMcpProxy,
    Proxy::Supergateway,
];

/// How the server behind is reached.
#[derive(Clone, Debug)]
pub(crate) enum Behind {
    Http(String),
    Stdio(PathBuf),
}

/// Where everything is.
pub(crate) struct Places<'a> {
    pub(crate) backstop: &'a Path,
    pub(crate) peers: &'a Path,
    pub(crate) scratch: &'a Path,
}

/// A proxy that runs, until it is dropped.
pub(crate) struct Running {
    pub(crate) endpoint: Endpoint,
    _child: Option<Child>,
}

impl Proxy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Backstop => "backstop",
            Self::RustMcpProxy => "mcp-proxy (Rust) 0.6.0",
            Self::FastMcp => "fastmcp 4.1.2",
            Self::PythonMcpProxy => "mcp-proxy (Python) 0.13.0",
            Self::Supergateway => "supergateway 4.0.0",
        }
    }

    /// Whether it can stand in front of such a server.
    pub(crate) fn suits(self, behind: &Behind) -> bool {
        match (self, behind) {
            // These two are there to put a child process behind HTTP.
            (Self::PythonMcpProxy | Self::Supergateway, Behind::Http(_)) => false,
            _ => true,
        }
    }

    pub(crate) async fn start(
        self,
        behind: &Behind,
        places: &Places<'_>,
    ) -> anyhow::Result<Running> {
        let port = free_port()?;
        let scratch = places.scratch;
        let written = |name: &str, text: String| -> anyhow::Result<PathBuf> {
            let path = scratch.join(format!("{port}-{name}"));
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
            Ok(path)
        };
        let mut url = format!("http://127.0.0.1:{port}/mcp");
        let mut tool = "echo".to_owned();
        let mut command = match self {
            Self::Direct => {
                let endpoint = match behind {
                    Behind::Http(url) => Endpoint::Http {
                        url: url.clone(),
                        tool,
                    },
                    Behind::Stdio(program) => Endpoint::Pipe(program.clone()),
                };
                return Ok(Running {
                    endpoint,
                    _child: None,
                });
            }
            Self::Backstop => {
                let how = match behind {
                    Behind::Http(url) => format!("url = {url:?}"),
                    Behind::Stdio(program) => {
                        format!("command = {program:?}\nargs = [\"stdio\"]")
                    }
                };
                let config = format!("[[service]]\nname = \"bench\"\ntrusted = true\n{how}\n");
                return backstop(&config, places);
            }
            Self::RustMcpProxy => {
                let how = match behind {
                    Behind::Http(url) => format!("transport = \"http\"\nurl = {url:?}"),
                    Behind::Stdio(program) => {
                        format!("transport = \"stdio\"\ncommand = {program:?}\nargs = [\"stdio\"]")
                    }
                };
                let config = format!(
                    "[proxy]\nname = \"bench\"\nseparator = \"/\"\n[proxy.listen]\nhost = \"127.0.0.1\"\nport = {port}\n[[backends]]\nname = \"b\"\n{how}\n"
                );
                let config = written("mcp-proxy.toml", config)?;
                url = format!("http://127.0.0.1:{port}/");
                tool = "b/echo".into();
                let mut command = Command::new(places.peers.join("cargo/bin/mcp-proxy"));
                command.arg("--config").arg(config);
                command
            }
            Self::FastMcp => {
                let target = match behind {
                    Behind::Http(url) => json!(url).to_string(),
                    Behind::Stdio(program) => {
                        let program = program.to_string_lossy();
                        let server = json!({ "command": program, "args": ["stdio"] });
                        json!({ "mcpServers": { "b": server } }).to_string()
                    }
                };
                let script = format!(
                    "from fastmcp.server import create_proxy\ncreate_proxy({target}, name='bench').run(transport='http', host='127.0.0.1', port={port}, show_banner=False, log_level='error')\n"
                );
                let script = written("fastmcp.py", script)?;
                let mut command = Command::new(places.peers.join("fastmcp/bin/python"));
                command.arg(script);
                command
            }
            Self::PythonMcpProxy => {
                let Behind::Stdio(program) = behind else {
                    anyhow::bail!("it is not measured in front of HTTP");
                };
                let mut command = Command::new(places.peers.join("mcp-proxy/bin/mcp-proxy"));
                command.args(["--port", &port.to_string(), "--log-level", "ERROR", "--"]);
                command.arg(program).arg("stdio");
                command
            }
            Self::Supergateway => {
                let Behind::Stdio(program) = behind else {
                    anyhow::bail!("it is not measured in front of HTTP");
                };
                let mut command = Command::new(places.peers.join("node_modules/.bin/supergateway"));
                // Without sessions it starts a process for each request.
                command.args(["--outputTransport", "streamableHttp", "--stateful"]);
                command.args(["--logLevel", "none", "--port", &port.to_string()]);
                command.args(["--stdio", &format!("{} stdio", program.display())]);
                command
            }
        };
        let log = std::fs::File::create(scratch.join(format!("{port}.log")))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", self.name()))?;
        Ok(Running {
            endpoint: Endpoint::Http { url, tool },
            _child: Some(child),
        })
    }
}

/// The program with this configuration.
pub(crate) fn backstop(config: &str, places: &Places<'_>) -> anyhow::Result<Running> {
    let port = free_port()?;
    let path = places.scratch.join(format!("{port}-backstop.toml"));
    std::fs::write(&path, config).with_context(|| path.display().to_string())?;
    let log = std::fs::File::create(places.scratch.join(format!("{port}.log")))?;
    let child = Command::new(places.backstop)
        .arg("serve")
        .arg("--config")
        .arg(path)
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("backstop cannot be started")?;
    let endpoint = Endpoint::Http {
        url: format!("http://127.0.0.1:{port}/mcp"),
        tool: "echo".to_owned(),
    };
    Ok(Running {
        endpoint,
        _child: Some(child),
    })
}

/// An address where nobody listens.
pub(crate) fn nowhere() -> anyhow::Result<String> {
    Ok(format!("http://127.0.0.1:{}/mcp", free_port()?))
}

/// The server itself, over HTTP.
pub(crate) fn server(sse: bool) -> anyhow::Result<(Child, String)> {
    let port = free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["http", &port.to_string()]);
    if sse {
        command.arg("--sse");
    }
    let child = command.kill_on_drop(true).spawn()?;
    Ok((child, format!("http://127.0.0.1:{port}/mcp")))
}

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}
