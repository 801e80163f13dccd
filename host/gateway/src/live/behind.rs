//! What is behind the gateway, as a configuration says.

use std::collections::BTreeSet;
use std::path::Path;

use backstop::config::{Config, Diagnostic, Expanded, Model, Service, Transport};
use backstop::discovery::Targets;

use crate::gateway::Gateway;
use crate::headers::header_map;
use crate::model::ModelSpec;
use crate::upstream::{OAuthSpec, Reread, ServiceSpec, TransportSpec};

/// The servers and models a configuration names, as far as they can be used.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Behind {
    /// How each service is reached.
    pub services: Vec<ServiceSpec>,
    /// How each model is reached.
    pub models: Vec<ModelSpec>,
    /// The names of those that cannot be reached as it is said.
    pub unusable: Vec<String>,
    /// What is wrong, or odd.
    pub diagnostics: Vec<Diagnostic>,
}

impl Behind {
    /// What this configuration names; `file` is what the diagnostics name. Keys of models are looked up
    /// in the environment, and commands in the file system.
    pub fn of(config: &Config, file: &Path) -> Self {
        let mut behind = Self::default();
        for service in &config.services {
            match service_spec(service) {
                Ok(spec) => behind.services.push(spec),
                Err(reason) => behind.refuse(file, "service", &service.name, reason),
            }
            behind.diagnostics.extend(missing_command(service, file));
        }
        for model in &config.models {
            match model_spec(model) {
                Ok(spec) => behind.models.push(spec),
                Err(reason) => behind.refuse(file, "model", &model.name, reason),
            }
        }
        behind.diagnostics.extend(mixed_groups(config, file));
        behind
    }

    fn refuse(&mut self, file: &Path, what: &str, name: &str, reason: String) {
        let field = format!("{what} {name:?}");
        let diagnostic = Diagnostic::error(file, field, reason);
        self.diagnostics.push(diagnostic);
        self.unusable.push(name.to_owned());
    }
}

/// The targets a configuration names itself, but those that cannot be reached.
pub(super) fn fixed(config: &Config) -> Targets {
    let services = config.services.iter().filter(|s| service_spec(s).is_ok());
    let models = config.models.iter().filter(|m| model_spec(m).is_ok());
    Targets {
        services: services.cloned().collect(),
        models: models.cloned().collect(),
    }
}

/// Makes targets those of the gateway, where the rest of the configuration is this one.
pub(super) fn put(gateway: &Gateway, config: &Config, targets: &Targets) -> Result<(), String> {
    let services: Result<Vec<_>, _> = targets.services.iter().map(service_spec).collect();
    let models: Result<Vec<_>, _> = targets.models.iter().map(model_spec).collect();
    let of_services = targets.services.iter().map(|s| s.target(config));
    let of_models = targets.models.iter().map(|m| m.target(config));
    gateway
        .replace(of_services.chain(of_models).collect(), services?, models?)
        .map_err(|error| error.to_string())
}

fn service_spec(service: &Service) -> Result<ServiceSpec, String> {
    let transport = match &service.transport {
        Transport::Stdio {
            command,
            args,
            env,
            cwd,
        } => TransportSpec::Stdio {
            command: command.clone(),
            args: args.clone(),
            env: env
                .iter()
                .map(|(name, value)| (name.clone(), value.value().to_owned()))
                .collect(),
            cwd: cwd.clone(),
        },
        Transport::Http {
            url,
            headers,
            oauth,
        } => {
            let map = header_map(headers)?;
            let reread = headers.values().any(Expanded::is_of_file).then(|| {
                let headers = headers.clone();
                Reread::new(format!("{headers:?}"), move || {
                    let env = |name: &str| std::env::var(name).ok();
                    let again = |(name, value): (&String, &Expanded)| match value.again(&env) {
                        Ok(value) => Ok((name.clone(), value)),
                        Err(error) => Err(format!("header {name:?}: {error}")),
                    };
                    header_map(&headers.iter().map(again).collect::<Result<_, _>>()?)
                })
            });
            let url = url
                .value()
                .parse()
                .map_err(|error| format!("the url cannot be used: {error}"))?;
            TransportSpec::Http {
                url,
                headers: map,
                reread,
                oauth: oauth
                    .as_ref()
                    .map(|oauth| Box::new(OAuthSpec::from_config(oauth))),
            }
        }
    };
    Ok(ServiceSpec {
        name: service.name.as_str().into(),
        group: service.group.as_str().into(),
        trusted: service.trusted,
        transport,
    })
}

fn model_spec(model: &Model) -> Result<ModelSpec, String> {
    ModelSpec::from_config(model, &|name| std::env::var(name).ok())
}

/// A command that is nowhere to be found will not be there when a call needs it either.
fn missing_command(service: &Service, file: &Path) -> Option<Diagnostic> {
    let Transport::Stdio { command, .. } = &service.transport else {
        return None;
    };
    let is_there = if command.contains(std::path::MAIN_SEPARATOR) {
        Path::new(command).is_file()
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(command).is_file())
    };
    (!is_there).then(|| {
        let reason = format!(
            "the command {command:?} does not exist: it is no file and not in the PATH; install it or correct the name"
        );
        Diagnostic::error(file, format!("service {:?}.command", service.name), reason)
    })
}

/// Services and models cannot stand in for one another at the front.
fn mixed_groups(config: &Config, file: &Path) -> Vec<Diagnostic> {
    let is_mixed = |group: &&str| config.models.iter().any(|model| model.group == **group);
    let groups: BTreeSet<&str> = config.services.iter().map(|s| s.group.as_str()).collect();
    let mixed = groups.iter().filter(|group| is_mixed(group));
    let warning = |group: &&str| {
        let reason = format!(
            "group {group:?} holds services and models, and no request can be answered by either: give the models a group of their own"
        );
        Diagnostic::warning(file, "model.group", reason)
    };
    mixed.map(warning).collect()
}
