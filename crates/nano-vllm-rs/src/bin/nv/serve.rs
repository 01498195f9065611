//! `nv serve`: a model by the OpenAI API.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use nano_vllm_rs::engine::{Engine, EngineConfig};
use nano_vllm_rs::server::{self, Outcome, ServedModel, Server, ServerConfig};

use crate::args::ServeArgs;
use crate::model::Model;
use crate::{copies, interrupt, say};

/// How to serve a larger one.
const LARGER: &str = "cargo run --release -- serve Qwen/Qwen3-0.6B";

pub(crate) fn run(args: &ServeArgs, verbose: bool) -> Result<ExitCode> {
    let model = Model::open_or_demo(&args.model, "its folder or id", LARGER)?;
    let text = || {
        Ok(ServedModel {
            tokenizer: model.tokenizer()?,
            chat_template: model.chat_template()?,
            generation_config: model.generation_config()?,
        })
    };
    let (served, qwen3) = model.load_beside(args.compute, text);
    let (served, qwen3) = (served?, qwen3?);
    if verbose {
        say(copies::report(&model, args.compute));
    }
    let engine = Engine::new(qwen3, args.engine.change(EngineConfig::default()))?;
    say(engine.kv_cache_size());
    let server = Server::new(engine, served, server_config(args))?;
    let mut listening = Ok(());
    let outcome = server::run(server, &args.host, args.port, |address| {
        let mut out = io::stdout().lock();
        listening = writeln!(out, "listening on http://{address}").and_then(|()| out.flush());
    })?;
    // Nobody need read it.
    drop(listening);
    Ok(match outcome {
        Outcome::Drained => ExitCode::SUCCESS,
        Outcome::Interrupted => ExitCode::from(interrupt::EXIT_CODE),
    })
}

fn server_config(args: &ServeArgs) -> ServerConfig {
    let mut names = args.served_model_name.clone();
    if names.is_empty() {
        names.push(match &args.model.name {
            None => "demo".to_owned(),
            Some(name) => folder_name(name).unwrap_or_else(|| name.clone()),
        });
    }
    ServerConfig {
        served_model_names: names,
        api_keys: args.api_key.clone(),
        cors_origins: args.cors_origin.clone(),
        max_body_bytes: args.max_body_size,
        max_num_waiting: args.max_num_waiting,
        read_timeout: Duration::from_secs(args.read_timeout),
        write_timeout: Duration::from_secs(args.write_timeout),
        request_timeout: args.request_timeout.map(Duration::from_secs),
    }
}

/// What a model in a folder is called: where the folder lies is nobody else's concern.
fn folder_name(name: &str) -> Option<String> {
    let path = Path::new(name).canonicalize().ok().filter(|path| path.is_dir())?;
    Some(path.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    #[test]
    fn the_readmes_client_asks_for_the_model_that_its_command_serves() {
        let readme = include_str!("../../../../../README.md");
        let (_, section) = readme.split_once("\n## Serve\n").unwrap();
        let (_, command) = section.split_once("```sh\n").unwrap();
        let words = command.lines().next().unwrap().split(' ');
        let Command::Serve(args) = Args::try_parse_from(words).unwrap().command else {
            panic!("the section begins with another command");
        };
        let (_, client) = section.split_once("model=\"").unwrap();
        let (model, _) = client.split_once('"').unwrap();
        assert_eq!(server_config(&args).served_model_names, [model]);
    }
}
