import Foundation
import Testing

@testable import ModditCore
@testable import moddit_cli

struct PlacementsTests {
    private static let graphs = """
        {"minimum_os": {"iOS": "18.0", "macOS": "15.0"}, "compute_units": "cpuAndGPU", "routing": "rows", "packages": {
        "text_encoder": [\(package("Text", ["encode"]))], "prepare": [\(package("Prepare", ["batch1"]))],
        "transformer": [\(package("Model", ["first", "second"]))],
        "vae_decoder": [\(package("Decoder", ["px8x8"]))], "vae_encoder": [\(package("Encoder", ["px8x8"]))]},
        "step_functions": [
        {"function": "first", "height": 8, "width": 8, "batch": 1, "regions": [0], "capacities": [4]}],
        "trained_plan": {"regions": 1, "num_train_timesteps": 10, "keep_tenths": [[10]]}}
        """

    private static func package(_ name: String, _ functions: [String]) -> String {
        let feature = #"{"x": {"shape": [1], "dtype": "float32"}}"#
        let items = functions.map { #"{"name": "\#($0)", "inputs": \#(feature), "outputs": \#(feature)}"# }
        return #"{"path": "\#(name).mlpackage", "functions": [\#(items.joined(separator: ", "))]}"#
    }

    private func graphs() throws -> Graphs {
        let value = try JSON.parse(Data(Self.graphs.utf8), place: "graphs", component: "test")
        return try Graphs(JSONField(value, place: "graphs", component: "test"), roles: PackageRole.allCases)
    }

    /// A placement with one operation on the GPU, and in the transformer what selects tokens.
    private func place(_ package: Package, _ function: GraphFunction) -> Placement {
        var placement = Placement(package: package.path, function: function.name)
        placement.count("const", on: nil)
        placement.count("ios18.linear", on: "GPU")
        if package.path == "Model.mlpackage" {
            for device in ["CPU", "GPU", "CPU", nil] { placement.count("ios17.gather", on: device) }
            placement.count("ios17.topk", on: "CPU")
        }
        return placement
    }

    @Test func everyFunctionOfEveryPackage() async throws {
        var notes: [String] = []
        let report = try await PlacementReport(try graphs(), only: nil, note: { notes.append($0) }) { place($0, $1) }
        #expect(
            report.placements.map { "\($0.package) \($0.function)" } == [
                "Text.mlpackage encode", "Prepare.mlpackage batch1", "Model.mlpackage first", "Model.mlpackage second",
                "Decoder.mlpackage px8x8", "Encoder.mlpackage px8x8",
            ])
        #expect(report.failures.isEmpty)
        #expect(notes.count == 6)
        #expect(
            report.text(.cpuOnly).hasPrefix(
                """
                compute units: cpuOnly
                operations of Text.mlpackage, encode
                  top-k, gather, scatter: none
                  others: linear GPU 1
                operations of Prepare.mlpackage, batch1
                  top-k, gather, scatter: none
                  others: linear GPU 1
                operations of Model.mlpackage, first
                  top-k, gather, scatter: gather CPU 2, GPU 1, unknown 1; topk CPU 1
                  others: linear GPU 1

                """))
        #expect(report.json(.all).text.contains(#""operations": {"gather": {"CPU": 2, "GPU": 1, "unknown": 1}"#))
        #expect(report.json(.all).text.contains(#""compute_units": "all""#))
    }

    @Test func oneThatFailsDoesNotStopTheOthers() async throws {
        var notes: [String] = []
        let report = try await PlacementReport(try graphs(), only: nil, note: { notes.append($0) }) { package, function in
            if function.name == "first" { throw ModditError.compute("[coreml] cannot place it") }
            return place(package, function)
        }
        #expect(report.placements.map(\.function) == ["encode", "batch1", "second", "px8x8", "px8x8"])
        #expect(report.failures == ["Model.mlpackage, first"])
        #expect(notes.contains("error: [coreml] cannot place it"))
        #expect(report.json(.all).text.contains(#""failures": ["Model.mlpackage, first"]"#))
    }

    @Test func functionsOfOneName() async throws {
        let report = try await PlacementReport(try graphs(), only: "px8x8", note: { _ in }) { place($0, $1) }
        #expect(report.placements.map(\.package) == ["Decoder.mlpackage", "Encoder.mlpackage"])
        let wanted = ModditError.missing("[placement] no function 'main', want one of batch1, encode, first, px8x8, second")
        await #expect(throws: wanted) {
            _ = try await PlacementReport(try graphs(), only: "main", note: { _ in }) { place($0, $1) }
        }
    }

    @Test func interruption() async throws {
        await #expect(throws: CancellationError.self) {
            _ = try await PlacementReport(try graphs(), only: nil, note: { _ in }) { _, _ in throw CancellationError() }
        }
    }
}
