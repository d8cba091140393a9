//! One function per resource and method.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};

use super::{Input, Params, prometheus};
use crate::api::{
    AggregateView, CheckStart, CheckView, CounterView, DiskAdd, DiskReplace, DiskView, ExplainView,
    ExportChange, ExportView, GroupAdd, JobView, RaidTypeChange, ScrubView, StatusView,
    VolumeChange, VolumeCreate, VolumeView,
};
use crate::error::ApiError;
use crate::jobs::Job;
use crate::mhost::MHost;
use crate::model::ScrubSchedule;

type Node = State<Arc<MHost>>;
type Answer<T> = Result<Json<T>, ApiError>;
type Accepted = Result<(StatusCode, Json<JobView>), ApiError>;

fn accepted(mhost: &MHost, job: Job) -> Accepted {
    Ok((StatusCode::ACCEPTED, Json(mhost.job_view(job))))
}

fn group_number(text: &str) -> Result<u16, ApiError> {
    text.parse().map_err(|_| crate::steps::no_such_group(u16::MAX))
}

/// Parameters of explain.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainParams {
    /// Path from a volume's junction on.
    path: String,
    /// Byte of the file; 0 when it is left out.
    #[serde(default)]
    offset: u64,
}

/// The description of this interface.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Cairn",
        description = "Management of a Cairn node. Every request carries \
        `Authorization: Bearer TOKEN`; every error is {error, what_to_do}."
    ),
    paths(
        status,
        disks,
        add_disks,
        fail_disk,
        replace_disk,
        aggregates,
        add_group,
        grow_group,
        set_raid_type,
        consistency_point,
        volumes,
        create_volume,
        volume,
        change_volume,
        delete_volume,
        exports,
        export,
        set_export,
        jobs,
        job,
        scrub,
        start_scrub,
        check,
        start_check,
        set_scrub_schedule,
        explain,
        counters,
        metrics
    ),
    components(schemas(ApiError))
)]
struct Description;

pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}

/// The node at a glance.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, body = StatusView), (status = "4XX", body = ApiError)))]
pub(super) async fn status(State(mhost): Node) -> Answer<StatusView> {
    mhost.status_view().await.map(Json)
}

/// All disks.
#[utoipa::path(get, path = "/api/v1/disks", responses((status = 200, body = Vec<DiskView>), (status = "4XX", body = ApiError)))]
pub(super) async fn disks(State(mhost): Node) -> Answer<Vec<DiskView>> {
    mhost.disks_view().await.map(Json)
}

/// Attaches disks as spares.
#[utoipa::path(post, path = "/api/v1/disks", request_body = DiskAdd, responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn add_disks(State(mhost): Node, Input(body): Input<DiskAdd>) -> Accepted {
    let job = mhost.add_disks(body)?;
    accepted(&mhost, job)
}

/// Takes a disk out; a spare is rebuilt in its place.
#[utoipa::path(post, path = "/api/v1/disks/{disk}/fail", params(("disk" = String, Path, description = "identity of the disk")), responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn fail_disk(State(mhost): Node, Path(disk): Path<String>) -> Accepted {
    let job = mhost.fail_disk(&disk).await?;
    accepted(&mhost, job)
}

/// Copies a disk that still serves to a spare, which takes its place.
#[utoipa::path(post, path = "/api/v1/disks/{disk}/replace", params(("disk" = String, Path, description = "identity of the disk")), request_body = DiskReplace, responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn replace_disk(
    State(mhost): Node,
    Path(disk): Path<String>,
    Input(body): Input<DiskReplace>,
) -> Accepted {
    let job = mhost.replace_disk(&disk, body).await?;
    accepted(&mhost, job)
}

/// All aggregates.
#[utoipa::path(get, path = "/api/v1/aggregates", responses((status = 200, body = Vec<AggregateView>), (status = "4XX", body = ApiError)))]
pub(super) async fn aggregates(State(mhost): Node) -> Answer<Vec<AggregateView>> {
    mhost.aggregates_view().await.map(Json)
}

/// Forms a RAID group of spares.
#[utoipa::path(post, path = "/api/v1/aggregates/groups", request_body = GroupAdd, responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn add_group(State(mhost): Node, Input(body): Input<GroupAdd>) -> Accepted {
    let job = mhost.add_group(body).await?;
    accepted(&mhost, job)
}

/// Widens a RAID group by one data disk.
#[utoipa::path(post, path = "/api/v1/aggregates/groups/{group}/grow", params(("group" = u16, Path, description = "number of the group")), responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn grow_group(State(mhost): Node, Path(group): Path<String>) -> Accepted {
    let job = mhost.grow_group(group_number(&group)?).await?;
    accepted(&mhost, job)
}

/// Adds diagonal parity to a RAID group, from a spare, or drops it.
#[utoipa::path(put, path = "/api/v1/aggregates/groups/{group}/raid-type", params(("group" = u16, Path, description = "number of the group")), request_body = RaidTypeChange, responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn set_raid_type(
    State(mhost): Node,
    Path(group): Path<String>,
    Input(body): Input<RaidTypeChange>,
) -> Accepted {
    let job = mhost.set_raid_type(group_number(&group)?, body).await?;
    accepted(&mhost, job)
}

/// Runs a consistency point and waits for it.
#[utoipa::path(post, path = "/api/v1/aggregates/consistency-point", responses((status = 204), (status = "4XX", body = ApiError)))]
pub(super) async fn consistency_point(State(mhost): Node) -> Result<StatusCode, ApiError> {
    mhost.consistency_point().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All volumes.
#[utoipa::path(get, path = "/api/v1/volumes", responses((status = 200, body = Vec<VolumeView>), (status = "4XX", body = ApiError)))]
pub(super) async fn volumes(State(mhost): Node) -> Answer<Vec<VolumeView>> {
    mhost.volumes_view().await.map(Json)
}

/// Makes a volume.
#[utoipa::path(post, path = "/api/v1/volumes", request_body = VolumeCreate, responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn create_volume(
    State(mhost): Node,
    Input(body): Input<VolumeCreate>,
) -> Accepted {
    let job = mhost.create_volume(body)?;
    accepted(&mhost, job)
}

/// One volume.
#[utoipa::path(get, path = "/api/v1/volumes/{name}", params(("name" = String, Path, description = "name of the volume")), responses((status = 200, body = VolumeView), (status = "4XX", body = ApiError)))]
pub(super) async fn volume(State(mhost): Node, Path(name): Path<String>) -> Answer<VolumeView> {
    mhost.volume(&name)?;
    let all = mhost.volumes_view().await?;
    let found = all.into_iter().find(|v| v.name == name);
    found.map(Json).ok_or_else(ApiError::unexpected)
}

/// Resizes or renames a volume.
#[utoipa::path(patch, path = "/api/v1/volumes/{name}", params(("name" = String, Path, description = "name of the volume")), request_body = VolumeChange, responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn change_volume(
    State(mhost): Node,
    Path(name): Path<String>,
    Input(body): Input<VolumeChange>,
) -> Accepted {
    let job = mhost.change_volume(&name, body)?;
    accepted(&mhost, job)
}

/// Deletes a volume with everything in it.
#[utoipa::path(delete, path = "/api/v1/volumes/{name}", params(("name" = String, Path, description = "name of the volume")), responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn delete_volume(State(mhost): Node, Path(name): Path<String>) -> Accepted {
    let job = mhost.delete_volume(&name)?;
    accepted(&mhost, job)
}

/// All exports.
#[utoipa::path(get, path = "/api/v1/exports", responses((status = 200, body = Vec<ExportView>), (status = "4XX", body = ApiError)))]
pub(super) async fn exports(State(mhost): Node) -> Answer<Vec<ExportView>> {
    mhost.exports_view().map(Json)
}

/// The export of one volume.
#[utoipa::path(get, path = "/api/v1/exports/{volume}", params(("volume" = String, Path, description = "name of the volume")), responses((status = 200, body = ExportView), (status = "4XX", body = ApiError)))]
pub(super) async fn export(State(mhost): Node, Path(volume): Path<String>) -> Answer<ExportView> {
    let entry = mhost.volume(&volume)?;
    let rules = mhost.export(&volume)?;
    Ok(Json(ExportView { volume, path: entry.junction, rules }))
}

/// Replaces the export policy of a volume; in force when this answers.
#[utoipa::path(put, path = "/api/v1/exports/{volume}", params(("volume" = String, Path, description = "name of the volume")), request_body = ExportChange, responses((status = 200, body = ExportView), (status = "4XX", body = ApiError)))]
pub(super) async fn set_export(
    State(mhost): Node,
    Path(volume): Path<String>,
    Input(body): Input<ExportChange>,
) -> Answer<ExportView> {
    mhost.set_export(&volume, body).await?;
    export(State(mhost), Path(volume)).await
}

/// All jobs, oldest first.
#[utoipa::path(get, path = "/api/v1/jobs", responses((status = 200, body = Vec<JobView>), (status = "4XX", body = ApiError)))]
pub(super) async fn jobs(State(mhost): Node) -> Answer<Vec<JobView>> {
    mhost.jobs_view().map(Json)
}

/// One job.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", params(("id" = u64, Path, description = "number of the job")), responses((status = 200, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn job(State(mhost): Node, Path(id): Path<String>) -> Answer<JobView> {
    let number = id.parse().map_err(|_| {
        ApiError::bad(format!("{id:?} is no job number"), "`cairn job list` shows the jobs")
    })?;
    Ok(Json(mhost.job_view(mhost.job(number)?)))
}

/// The scrub.
#[utoipa::path(get, path = "/api/v1/scrub", responses((status = 200, body = ScrubView), (status = "4XX", body = ApiError)))]
pub(super) async fn scrub(State(mhost): Node) -> Answer<ScrubView> {
    mhost.scrub_view().await.map(Json)
}

/// Verifies every block.
#[utoipa::path(post, path = "/api/v1/scrub", responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn start_scrub(State(mhost): Node) -> Accepted {
    let job = mhost.start_scrub()?;
    accepted(&mhost, job)
}

/// The check.
#[utoipa::path(get, path = "/api/v1/check", responses((status = 200, body = CheckView), (status = "4XX", body = ApiError)))]
pub(super) async fn check(State(mhost): Node) -> Answer<CheckView> {
    mhost.check_view().await.map(Json)
}

/// Compares the structures of a volume, or of everything, with each other.
#[utoipa::path(post, path = "/api/v1/check", request_body = CheckStart, responses((status = 202, body = JobView), (status = "4XX", body = ApiError)))]
pub(super) async fn start_check(State(mhost): Node, Input(body): Input<CheckStart>) -> Accepted {
    let job = mhost.start_check(body)?;
    accepted(&mhost, job)
}

/// Sets when scrubs run by themselves.
#[utoipa::path(put, path = "/api/v1/scrub/schedule", request_body = ScrubSchedule, responses((status = 200, body = ScrubView), (status = "4XX", body = ApiError)))]
pub(super) async fn set_scrub_schedule(
    State(mhost): Node,
    Input(body): Input<ScrubSchedule>,
) -> Answer<ScrubView> {
    mhost.set_scrub_schedule(body)?;
    mhost.scrub_view().await.map(Json)
}

/// Where a block of a file lies, all the way down.
#[utoipa::path(get, path = "/api/v1/explain", params(ExplainParams), responses((status = 200, body = ExplainView), (status = "4XX", body = ApiError)))]
pub(super) async fn explain(
    State(mhost): Node,
    Params(p): Params<ExplainParams>,
) -> Answer<ExplainView> {
    mhost.explain_view(&p.path, p.offset).await.map(Json)
}

/// All counters.
#[utoipa::path(get, path = "/api/v1/counters", responses((status = 200, body = Vec<CounterView>), (status = "4XX", body = ApiError)))]
pub(super) async fn counters(State(mhost): Node) -> Answer<Vec<CounterView>> {
    let metrics = mhost.counters().await?;
    let view = |m: &cairn_cf::Metric| CounterView {
        name: m.name.clone(),
        labels: prometheus::labels(m),
        value: m.value,
    };
    Ok(Json(metrics.iter().map(view).collect()))
}

/// All counters as Prometheus text.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String), (status = "4XX", body = ApiError)))]
pub(super) async fn metrics(State(mhost): Node) -> Result<impl IntoResponse, ApiError> {
    let text = prometheus::text(&mhost.counters().await?);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}
