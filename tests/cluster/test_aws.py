"""The AWS files against moto's AWS: the base stack, Ray's own bootstrap, and the nodes it would launch."""

import re
from pathlib import Path

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster"


class _Template(yaml.SafeLoader):
    """Reads CloudFormation's tags (!Ref, !Sub, …) as plain values."""


_Template.add_multi_constructor("!", lambda loader, tag, node: node.value)


@pytest.fixture(scope="module")
def template():
    return yaml.load((CLUSTER / "aws-base.yaml").read_text(), _Template)  # noqa: S506


def as_list(value):
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """A fake account with the base stack; a home folder for the SSH key that Ray makes."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        ec2 = boto3.client("ec2")
        vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
        parameters = {"Bucket": "my-bucket", "SshFrom": "203.0.113.7/32", "Vpc": vpc}
        boto3.client("cloudformation").create_stack(
            StackName="ldcvae",
            TemplateBody=(CLUSTER / "aws-base.yaml").read_text(),
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        )
        yield ec2


@pytest.fixture(scope="module")
def launched(aws):
    """Node type -> what EC2 says of one node of it, launched as `ray up` and the autoscaler launch them."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = prepare_config(yaml.safe_load((CLUSTER / "gpu.yaml").read_text()))
    validate_config(config)
    config = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    nodes = {}
    for name, node_type in config["available_node_types"].items():
        tags = {"ray-node-kind": "worker", "ray-launch-config": "x", "ray-user-node-type": name}
        (node_id,) = provider.create_node(node_type["node_config"], tags, 1)
        (reservation,) = aws.describe_instances(InstanceIds=[node_id])["Reservations"]
        (nodes[name],) = reservation["Instances"]
    return nodes


def test_types_market_and_profiles(launched):
    found = {
        name: (
            node["InstanceType"],
            node.get("InstanceLifecycle"),
            node["IamInstanceProfile"]["Arn"].rpartition("/")[2],
        )
        for name, node in launched.items()
    }
    assert found == {
        "head": ("m7i.xlarge", None, "ldcvae-head"),
        "gpu_spot": ("g6.2xlarge", "spot", "ldcvae-worker"),
        "gpu_on_demand": ("g6.2xlarge", None, "ldcvae-worker"),
    }


def test_every_node_is_closed_and_its_disk_goes_with_it(launched):
    for node in launched.values():
        assert [group["GroupName"] for group in node["SecurityGroups"]] == ["ldcvae"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert [disk["Ebs"]["DeleteOnTermination"] for disk in node["BlockDeviceMappings"]] == [True]
        assert {"Key": "ray-cluster-name", "Value": "ldcvae"} in node["Tags"]


def test_nothing_is_open_to_the_world_even_after_rays_bootstrap(aws, launched):
    (group,) = aws.describe_security_groups(GroupNames=["ldcvae"])["SecurityGroups"]
    rules = group["IpPermissions"]
    assert [r["CidrIp"] for rule in rules for r in rule["IpRanges"]] == ["203.0.113.7/32"]
    assert not any(rule["Ipv6Ranges"] for rule in rules)
    assert [rule["FromPort"] for rule in rules if rule["IpRanges"]] == [22]
    among = [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]]
    assert among == [group["GroupId"]]


def test_roles_reach_only_the_bucket_and_the_clusters_own_machines(aws, template):
    iam = boto3.client("iam")
    (policy,) = (p for p in iam.list_policies(Scope="Local")["Policies"] if p["PolicyName"] == "ldcvae-runs")
    document = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
    statements = document["PolicyVersion"]["Document"]["Statement"]
    assert [s["Resource"] for s in statements] == ["arn:aws:s3:::my-bucket", "arn:aws:s3:::my-bucket/*"]
    assert iam.list_role_policies(RoleName="ldcvae-worker")["PolicyNames"] == []
    (own,) = template["Resources"]["HeadRole"]["Properties"]["Policies"]
    by_action = {action: s for s in own["PolicyDocument"]["Statement"] for action in as_list(s["Action"])}
    assert set(by_action) == {
        "ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags", "ssm:GetParameters", "iam:PassRole",
        "ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances",
    }  # fmt: skip
    assert by_action["ec2:TerminateInstances"]["Condition"]["StringEquals"] == {
        "aws:ResourceTag/ray-cluster-name": "ldcvae"
    }
    assert by_action["iam:PassRole"]["Resource"] == "WorkerRole.Arn"


def test_the_stack_refuses_the_whole_internet(template):
    allowed = re.compile(template["Parameters"]["SshFrom"]["AllowedPattern"])
    assert allowed.match("203.0.113.7/32")
    assert not allowed.match("0.0.0.0/0")


def test_the_bucket_is_private_and_outlives_the_stack(template):
    bucket = template["Resources"]["RunsBucket"]
    assert bucket["DeletionPolicy"] == "Retain"
    assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}


def test_cloudformation_has_no_yaml_aliases():
    events = yaml.parse((CLUSTER / "aws-base.yaml").read_text())
    assert not any(isinstance(event, yaml.AliasEvent) for event in events)
